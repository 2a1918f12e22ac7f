// One row of A.V: every attention weight is a power of two, so a product is a shift. Even and odd codes are summed apart.
//   out = clip(round_shift(even * MULTIPLIER_EVEN + odd * MULTIPLIER_ODD, OUT_SHIFT) + OUT_ZERO), for HEAD_DIM values side by side
// Latency: one clock after the last pair; one pair a clock.
module av_row
  import eam_pkg::*;
#(
    parameter int HEAD_DIM = 16,
    parameter int V_BITS = 4,
    parameter int V_ZERO = 8,
    parameter int ATTENTION_BITS = 4,
    parameter int LAST_CODE_IS_ZERO = 0,
    parameter int MULTIPLIER_EVEN = 40000,
    parameter int MULTIPLIER_ODD = 28284,
    parameter int OUT_SHIFT = 24,
    parameter int OUT_ZERO = 8,
    parameter int OUT_BITS = 4,
    parameter int ACC_BITS = 32,
    parameter int OVERFLOW = ERROR,
    parameter int ROUNDING = HALF_UP
) (
    input logic clk,
    input logic rst,
    input logic in_valid,
    output logic in_ready,
    input logic in_last,
    input logic [ATTENTION_BITS-1:0] code,
    input logic excluded,
    input logic [HEAD_DIM*V_BITS-1:0] v,
    output logic out_valid,
    input logic out_ready,
    output logic [HEAD_DIM*ACC_BITS-1:0] even,
    output logic [HEAD_DIM*ACC_BITS-1:0] odd,
    output logic [HEAD_DIM*OUT_BITS-1:0] out
);
  localparam int LAST_CODE = (1 << ATTENTION_BITS) - 1;
  localparam int TOP_POWER = LAST_CODE / 2;

  int64 running_even[0:HEAD_DIM-1], running_odd[0:HEAD_DIM-1], next_even[0:HEAD_DIM-1], next_odd[0:HEAD_DIM-1];
  int64 product, total_even, total_odd, total;
  logic [HEAD_DIM*ACC_BITS-1:0] narrow_even, narrow_odd;
  logic silent, is_odd;
  logic [HEAD_DIM*OUT_BITS-1:0] next_out;

  assign in_ready = !out_valid || out_ready;
  assign is_odd = code[0];
  assign silent = excluded || (LAST_CODE_IS_ZERO != 0 && code == ATTENTION_BITS'(LAST_CODE));

  always_comb
    for (int d = 0; d < HEAD_DIM; d++) begin
      product = silent ? 0 : int64'({1'b0, v[d*V_BITS+:V_BITS]}) - 64'(V_ZERO);
      product = product <<< (TOP_POWER - (32'(code) >> 1));
      next_even[d] = running_even[d] + (is_odd ? 0 : product);
      next_odd[d] = running_odd[d] + (is_odd ? product : 0);
      total_even = narrow(next_even[d], ACC_BITS, OVERFLOW);
      total_odd = narrow(next_odd[d], ACC_BITS, OVERFLOW);
      narrow_even[d*ACC_BITS+:ACC_BITS] = ACC_BITS'(total_even);
      narrow_odd[d*ACC_BITS+:ACC_BITS] = ACC_BITS'(total_odd);
      total = total_even * 64'(MULTIPLIER_EVEN) + total_odd * 64'(MULTIPLIER_ODD);
      next_out[d*OUT_BITS+:OUT_BITS] = OUT_BITS'(
          clip(round_shift(total, 6'(OUT_SHIFT), ROUNDING) + 64'(OUT_ZERO), 0, (64'sd1 <<< OUT_BITS) - 64'sd1));
    end

  always_ff @(posedge clk)
    if (rst) begin
      out_valid <= 0;
      for (int d = 0; d < HEAD_DIM; d++) begin
        running_even[d] <= 0;
        running_odd[d] <= 0;
      end
    end else begin
      if (out_ready) out_valid <= 0;
      if (in_valid && in_ready) begin
        for (int d = 0; d < HEAD_DIM; d++) begin
          running_even[d] <= in_last ? 0 : next_even[d];
          running_odd[d] <= in_last ? 0 : next_odd[d];
        end
        if (in_last) begin
          even <= narrow_even;
          odd <= narrow_odd;
          out <= next_out;
          out_valid <= 1;
        end
      end
    end
endmodule
