// Every row and channel of a Linear with a Requant epilogue, from the files of `eamsim trace export`; run it in their folder.
module tb_dot_requant;
  parameter NAME = "block0.attn.qkv";
  parameter X = "block0.norm1";
  parameter int ROWS = 17, IN = 64, CHANNELS = 192, LANES = 16;
  parameter int X_BITS = 4, W_BITS = 4, OUT_BITS = 4, MULTIPLIER_BITS = 16, X_ZERO = 0, FITTED = 0;
  parameter int ACC_BITS = 32, OVERFLOW = 0, ROUNDING = 0;

  logic [X_BITS-1:0] x[0:ROWS*IN-1];
  logic [W_BITS-1:0] weight[0:IN*CHANNELS-1], weight_zero[0:CHANNELS-1];
  logic signed [31:0] bias[0:CHANNELS-1];
  logic signed [ACC_BITS-1:0] expected_acc[0:ROWS*CHANNELS-1], acc;
  logic [MULTIPLIER_BITS-1:0] multiplier[0:CHANNELS-1];
  logic [5:0] shift[0:CHANNELS-1];
  logic [OUT_BITS-1:0] zero[0:CHANNELS-1], expected[0:ROWS*CHANNELS-1], out;
  logic in_last;
  logic [LANES*X_BITS-1:0] x_beat;
  logic [LANES*W_BITS-1:0] w_beat;
  int channel = 0;

  `include "tb_check.svh"

  dot_requant #(
      .LANES(LANES), .X_BITS(X_BITS), .W_BITS(W_BITS), .ACC_BITS(ACC_BITS), .OVERFLOW(OVERFLOW), .MULTIPLIER_BITS(MULTIPLIER_BITS),
      .OUT_BITS(OUT_BITS), .ROUNDING(ROUNDING), .FITTED(FITTED), .LEVELS({"constants/", NAME, ".levels.hex"})
  ) dut (
      .x(x_beat), .w(w_beat), .x_zero(X_BITS'(X_ZERO)), .w_zero(weight_zero[channel]), .bias(bias[channel]),
      .multiplier(multiplier[channel]), .shift(shift[channel]), .zero(zero[channel]), .*
  );

  initial begin
    $readmemh({"taps/", X, ".hex"}, x);
    $readmemh({"taps/", NAME, ".acc.hex"}, expected_acc);
    $readmemh({"taps/", NAME, ".hex"}, expected);
    $readmemh({"constants/", NAME, ".weight.hex"}, weight);
    $readmemh({"constants/", NAME, ".weight_zero.hex"}, weight_zero);
    $readmemh({"constants/", NAME, ".bias.hex"}, bias);
    $readmemh({"constants/", NAME, ".multiplier.hex"}, multiplier);
    $readmemh({"constants/", NAME, ".shift.hex"}, shift);
    $readmemh({"constants/", NAME, ".zero.hex"}, zero);
    for (int row = 0; row < ROWS; row++)
      for (int n = 0; n < CHANNELS; n++)
        for (int k = 0; k < IN; k += LANES) begin
          for (int i = 0; i < LANES; i++) begin
            x_beat[i*X_BITS+:X_BITS] <= k + i < IN ? x[row*IN+k+i] : 0;
            w_beat[i*W_BITS+:W_BITS] <= k + i < IN ? weight[(k+i)*CHANNELS+n] : weight_zero[n];
          end
          channel <= n;
          in_last <= k + LANES >= IN;
          send();
        end
    finish_after(ROWS * CHANNELS);
  end

  always @(posedge clk)
    if (out_valid && out_ready) begin
      `CHECK("acc", acc, expected_acc[checked])
      `CHECK("out", out, expected[checked])
      checked <= checked + 1;
    end
endmodule
