// What every testbench shares: clock, reset, random stalls on both sides, the comparison of one output, and an end for units that hang.
logic clk = 0, rst = 1, in_valid = 0, in_ready, out_valid, out_ready = 0;
int checked = 0, idle = 0;
always #1 clk = !clk;
always @(posedge clk) out_ready <= $urandom_range(3) != 0;
always @(posedge clk) begin
  idle <= out_valid && out_ready ? 0 : idle + 1;
  if (idle == 100_000) begin
    $display("%s: no output %0d in 100,000 clocks", NAME, checked);
    $fatal(1);
  end
end
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
  repeat (100) @(posedge clk);  // one output too many is compared with x
  $display("%s: %0d outputs equal", NAME, checked);
  $finish;
endtask
