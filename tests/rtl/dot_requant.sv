// One output channel of a Linear with a Requant epilogue, LANES products a beat:
//   acc = bias + sum (x - x_zero) * (w - w_zero)      out = clip(round_shift(acc * multiplier, shift) + zero)
// With FITTED, levels[x] stands in place of x - x_zero.
// The running sum is as wide as saturating the finished one may need; where it wraps, or cannot overflow, ACC_BITS of it are enough.
// A beat that is not full is filled up with w = w_zero. bias, multiplier, shift and zero are read with the last beat.
// Latency: one clock after the last beat; one beat a clock.
module dot_requant
  import eam_pkg::*;
#(
    parameter int LANES = 16,
    parameter int X_BITS = 4,
    parameter int W_BITS = 4,
    parameter int ACC_BITS = 32,
    parameter int OVERFLOW = ERROR,
    parameter int MULTIPLIER_BITS = 16,
    parameter int OUT_BITS = 4,
    parameter int ROUNDING = HALF_UP,
    parameter int FITTED = 0,
    parameter LEVELS = "levels.hex"
) (
    input logic clk,
    input logic rst,
    input logic in_valid,
    output logic in_ready,
    input logic in_last,
    input logic [LANES*X_BITS-1:0] x,
    input logic [LANES*W_BITS-1:0] w,
    input logic [X_BITS-1:0] x_zero,
    input logic [W_BITS-1:0] w_zero,
    input logic signed [31:0] bias,
    input logic [MULTIPLIER_BITS-1:0] multiplier,
    input logic [5:0] shift,
    input logic [OUT_BITS-1:0] zero,
    output logic out_valid,
    input logic out_ready,
    output logic signed [ACC_BITS-1:0] acc,
    output logic [OUT_BITS-1:0] out
);
  logic signed [7:0] levels[0:(1<<X_BITS)-1];
  int64 running, beat, total, scaled;

  initial if (FITTED != 0) $readmemh(LEVELS, levels);

  assign in_ready = !out_valid || out_ready;

  always_comb begin
    beat = 0;
    for (int i = 0; i < LANES; i++)
      beat += (FITTED != 0 ? int64'(levels[x[i*X_BITS+:X_BITS]]) : int64'({1'b0, x[i*X_BITS+:X_BITS]}) - int64'({1'b0, x_zero}))
            * (int64'({1'b0, w[i*W_BITS+:W_BITS]}) - int64'({1'b0, w_zero}));
    total = narrow(running + beat + int64'(bias), ACC_BITS, OVERFLOW);
    scaled = total * int64'({1'b0, multiplier});
  end

  always_ff @(posedge clk)
    if (rst) begin
      running <= 0;
      out_valid <= 0;
    end else begin
      if (out_ready) out_valid <= 0;
      if (in_valid && in_ready) begin
        running <= in_last ? 0 : running + beat;
        if (in_last) begin
          acc <= total[ACC_BITS-1:0];
          out <= OUT_BITS'(clip(round_shift(scaled, shift, ROUNDING) + int64'({1'b0, zero}), 0, (64'sd1 <<< OUT_BITS) - 64'sd1));
          out_valid <= 1;
        end
      end
    end
endmodule
