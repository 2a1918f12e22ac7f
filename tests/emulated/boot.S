# Boot sector: loads SECTORS sectors to 0x10000, enters 64-bit mode with SSE, AVX and AVX-512 state enabled, calls 0x10000.
.code16
.globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    movw $SECTORS, %cx
read:                               # BIOS extended read, one sector at a time
    push %cx
    mov $packet, %si
    mov $0x42, %ah
    int $0x13
    pop %cx
    addl $1, packet + 8             # next sector
    addw $0x20, packet + 6          # next 512 bytes
    loop read
    in $0x92, %al                   # A20
    or $2, %al
    out %al, $0x92
    lgdt descriptor
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmp $0x08, $protected
.code32
protected:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov %ax, %es
    mov $0x1000, %edi               # page tables: the first GiB, identity, 2 MiB pages
    xor %eax, %eax
    mov $0xc00, %ecx
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    mov $0x3000, %edi
    mov $0x83, %eax
    mov $512, %ecx
page:
    mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop page
    mov $0x1000, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x40620, %eax               # PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
    mov %eax, %cr4
    mov $0xc0000080, %ecx           # EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    and $~0x4, %eax                 # no x87 emulation
    or $0x80000002, %eax            # paging, monitor coprocessor
    mov %eax, %cr0
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0xe7, %eax                 # XCR0: x87, SSE, AVX, AVX-512
    xsetbv
    ljmp $0x18, $long
.code64
long:
    mov $0x800000, %rsp
    mov $0x10000, %rax
    call *%rax
    hlt
.align 8
table:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff
descriptor:
    .word 31
    .long table
.align 4
packet:
    .byte 16, 0
    .word 1
    .word 0
    .word 0x1000
    .quad 1
.org 510
.word 0xaa55
