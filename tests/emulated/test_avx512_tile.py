"""The AVX-512 VNNI tiles and table lookups, compiled as the engine compiles them, executed on an emulated Tiger Lake.

Most machines that run this suite have no AVX-512. Bochs does: the tiles are linked into a bare-metal image that boots,
compares them with plain C loops and prints the count. Needs Debian's bochs, bochs-term, bochsbios, vgabios, and gcc.
"""

import os
import pty
import shutil
import subprocess
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from eamsim.engine import isa
from eamsim.engine.ir import epilogue, shuffles, tile

HERE = Path(__file__).parent
IMAGE_BYTES = 20 * 16 * 63 * 512  # the disk geometry in bochsrc
pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
    pytest.mark.skipif(
        not Path("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so").exists(), reason="bochs-term is not installed"
    ),
]


def compile_tiles(target: Path) -> None:
    """Object code of both tiles, as functions `wide` and `narrow` of nine int64, and of `look_up`, of four."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = "x86_64-unknown-linux-gnu"
    vectors = isa.VECTORS[isa.Avx512Vnni]
    for name, panels in (("wide", vectors.panels), ("narrow", 1)):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [tile.I64] * 9), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        a, a_stride, b, b_stride, bias, out, out_stride, steps, safe_steps = function.args
        sums = tile.emit_product(builder, vectors, panels, tile.Product(a, a_stride, b, b_stride, bias, steps, safe_steps))
        epilogue.emit_store(builder, "floor", vectors, sums, epilogue.Finish(out, out_stride, *[tile.I64(0)] * 12))
        builder.ret_void()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [tile.I64] * 4), "look_up")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    shuffles.emit_look_up(builder, vectors, *function.args)
    builder.ret_void()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu="icelake-server", opt=3, reloc="static", codemodel="small")
    compiled = llvm.parse_assembly(str(module))
    assert "vpdpbusd" in machine.emit_assembly(compiled)
    target.write_bytes(machine.emit_object(compiled))


def build_image(folder: Path) -> None:
    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    compile_tiles(folder / "tile.o")
    run("gcc", "-O1", "-ffreestanding", "-fno-pic", "-mno-red-zone", "-fno-stack-protector", "-c", HERE / "tiles.c", "-o", "tiles.o")
    run("ld", "-T", HERE / "tiles.ld", "--no-warn-rwx-segments", "tiles.o", "tile.o", "-o", "tiles.elf")
    run("objcopy", "-O", "binary", "tiles.elf", "tiles.bin")
    tiles = (folder / "tiles.bin").read_bytes()
    run("gcc", "-c", f"-DSECTORS={-(-len(tiles) // 512)}", HERE / "boot.S", "-o", "boot.o")
    run("ld", "-Ttext", "0x7c00", "--oformat", "binary", "boot.o", "-o", "boot.bin")
    (folder / "disk.img").write_bytes(((folder / "boot.bin").read_bytes() + tiles).ljust(IMAGE_BYTES, b"\0"))


def test_tiles_equal_plain_loops(tmp_path, monkeypatch):
    build_image(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    printed = bytearray()

    def read(terminal: int) -> bytes:
        chunk = os.read(terminal, 4096)
        printed.extend(chunk)
        return chunk

    (tmp_path / "continue").write_text("c\n")
    pty.spawn(["bochs", "-q", "-f", str(HERE / "bochsrc"), "-rc", "continue"], read, lambda _: b"")
    assert b"tiles 84 wrong 0 lookups 8192 wrong 0 " in printed, printed[-2000:].decode(errors="replace")
