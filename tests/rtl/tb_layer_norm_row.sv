// Every token of a LayerNorm.
module tb_layer_norm_row;
  parameter NAME = "block0.norm1";
  parameter X = "embed";
  parameter int ROWS = 17, CHANNELS = 64;
  parameter int X_BITS = 16, RECIPROCAL_BITS = 15, FRACTION_BITS = 12, SHIFT = 20, OUT_BITS = 4, OUT_SIGNED = 0, ROUNDING = 0;
  parameter VARIANCE_OFFSET = "1";
  parameter int VARIANCE_BITS = 62, RECIPROCAL_WIDTH = 17, NORMALISED_BITS = 32;

  logic signed [X_BITS-1:0] rows[0:ROWS*CHANNELS-1];
  logic [VARIANCE_BITS-1:0] expected_variance[0:ROWS-1];
  logic [RECIPROCAL_WIDTH-1:0] expected_reciprocal[0:ROWS-1];
  logic signed [NORMALISED_BITS-1:0] expected_normalised[0:ROWS*CHANNELS-1];
  logic [OUT_BITS-1:0] expected[0:ROWS*CHANNELS-1], out;
  logic [61:0] variance, variance_offset;
  logic [31:0] reciprocal;
  logic signed [31:0] normalised;
  int at = 0;

  `include "tb_check.svh"

  layer_norm_row #(
      .CHANNELS(CHANNELS), .X_BITS(X_BITS), .RECIPROCAL_BITS(RECIPROCAL_BITS), .FRACTION_BITS(FRACTION_BITS), .SHIFT(SHIFT),
      .OUT_BITS(OUT_BITS), .OUT_SIGNED(OUT_SIGNED), .ROUNDING(ROUNDING),
      .GAIN({"constants/", NAME, ".gain.hex"}), .OFFSET({"constants/", NAME, ".offset.hex"})
  ) dut (.x(rows[at]), .*);

  initial begin
    if ($sscanf(VARIANCE_OFFSET, "%d", variance_offset) != 1) $fatal(1);
    $readmemh({"taps/", X, ".hex"}, rows);
    $readmemh({"taps/", NAME, ".variance.hex"}, expected_variance);
    $readmemh({"taps/", NAME, ".reciprocal.hex"}, expected_reciprocal);
    $readmemh({"taps/", NAME, ".normalised.hex"}, expected_normalised);
    $readmemh({"taps/", NAME, ".hex"}, expected);
    for (int i = 0; i < ROWS * CHANNELS; i++) begin
      at <= i;
      send();
    end
    finish_after(ROWS * CHANNELS);
  end

  always @(posedge clk)
    if (out_valid && out_ready) begin
      `CHECK("variance", variance, 62'(expected_variance[checked/CHANNELS]))
      `CHECK("reciprocal", reciprocal, 32'(expected_reciprocal[checked/CHANNELS]))
      `CHECK("normalised", normalised, 32'(expected_normalised[checked]))
      `CHECK("out", out, expected[checked])
      checked <= checked + 1;
    end
endmodule
