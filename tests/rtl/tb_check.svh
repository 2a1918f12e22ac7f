// What every testbench shares: clock, reset, random stalls on both sides, and the comparison of one output.
logic clk = 0, rst = 1, in_valid = 0, in_ready, out_valid, out_ready = 0;
int checked = 0;
always #1 clk = !clk;
always @(posedge clk) out_ready <= $urandom_range(3) != 0;
initial begin
  repeat (2) @(posedge clk);
  rst <= 0;
end

`define CHECK(WHAT, FOUND, EXPECTED) \
  if ((FOUND) !== (EXPECTED)) begin \
    $display("%s %s[%0d]: expected %0d, found %0d", NAME, WHAT, checked, EXPECTED, FOUND); \
    $fatal(1); \
  end

// Offer what stands at the inputs until it is taken, after a stall now and then.
task automatic send;
  in_valid <= 1;
  do @(posedge clk); while (rst || !in_ready);
  in_valid <= 0;
  while ($urandom_range(3) == 0) @(posedge clk);
endtask

task automatic finish_after(int outputs);
  while (checked < outputs) @(posedge clk);
  $display("%s: %0d outputs equal", NAME, checked);
  $finish;
endtask
