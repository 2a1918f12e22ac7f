// Every sum of a Linear with a Gelu epilogue.
module tb_gelu_table;
  parameter NAME = "block0.mlp.fc1";
  parameter int ROWS = 17, CHANNELS = 256;
  parameter int OUT_BITS = 4, MULTIPLIER_BITS = 16, INDEX_BITS = 8, INDEX_ZERO = 0, ACC_BITS = 32, ROUNDING = 0;

  logic signed [ACC_BITS-1:0] sums[0:ROWS*CHANNELS-1];
  logic [MULTIPLIER_BITS-1:0] multiplier[0:CHANNELS-1];
  logic [5:0] shift[0:CHANNELS-1];
  logic [INDEX_BITS-1:0] expected_index[0:ROWS*CHANNELS-1], index;
  logic [OUT_BITS-1:0] expected[0:ROWS*CHANNELS-1], out;
  int at = 0;

  `include "tb_check.svh"

  gelu_table #(
      .ACC_BITS(ACC_BITS), .MULTIPLIER_BITS(MULTIPLIER_BITS), .INDEX_BITS(INDEX_BITS), .INDEX_ZERO(INDEX_ZERO), .OUT_BITS(OUT_BITS),
      .ROUNDING(ROUNDING), .TABLE({"constants/", NAME, ".table.hex"})
  ) dut (.acc(sums[at]), .multiplier(multiplier[at%CHANNELS]), .shift(shift[at%CHANNELS]), .*);

  initial begin
    $readmemh({"taps/", NAME, ".acc.hex"}, sums);
    $readmemh({"taps/", NAME, ".index.hex"}, expected_index);
    $readmemh({"taps/", NAME, ".hex"}, expected);
    $readmemh({"constants/", NAME, ".multiplier.hex"}, multiplier);
    $readmemh({"constants/", NAME, ".shift.hex"}, shift);
    for (int i = 0; i < ROWS * CHANNELS; i++) begin
      at <= i;
      send();
    end
    finish_after(ROWS * CHANNELS);
  end

  always @(posedge clk)
    if (out_valid && out_ready) begin
      `CHECK("index", index, expected_index[checked])
      `CHECK("out", out, expected[checked])
      checked <= checked + 1;
    end
endmodule
