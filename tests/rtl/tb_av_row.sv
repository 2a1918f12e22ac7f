// Every row of A.V of one operation, from its codes and the v columns of its input.
module tb_av_row;
  parameter NAME = "block0.attn";
  parameter X = "block0.attn.qkv";
  parameter int IMAGES = 1, WINDOWS = 1, HEADS = 4, SCORED = 4, TOKENS = 17, HEAD_DIM = 16;
  parameter int V_BITS = 4, V_ZERO = 8, ATTENTION_BITS = 4, LAST_CODE_IS_ZERO = 0, HAS_EXCLUDED = 0;
  parameter int MULTIPLIER_EVEN = 40000, MULTIPLIER_ODD = 28284, OUT_SHIFT = 24, OUT_ZERO = 8, OUT_BITS = 4;
  parameter int ACC_BITS = 32, OVERFLOW = 0, ROUNDING = 0;

  localparam int ROWS = IMAGES * WINDOWS * HEADS * TOKENS, COLUMNS = (2 * SCORED + HEADS) * HEAD_DIM;

  logic [V_BITS-1:0] x[0:IMAGES*WINDOWS*TOKENS*COLUMNS-1];
  logic [ATTENTION_BITS-1:0] codes[0:ROWS*TOKENS-1], code;
  logic excluded_pair[0:WINDOWS*TOKENS*TOKENS-1];
  logic signed [ACC_BITS-1:0] expected_even[0:ROWS*HEAD_DIM-1], expected_odd[0:ROWS*HEAD_DIM-1], one_even, one_odd;
  logic [OUT_BITS-1:0] expected[0:ROWS*HEAD_DIM-1], one_out;
  logic in_last, excluded;
  logic [HEAD_DIM*V_BITS-1:0] v;
  logic [HEAD_DIM*ACC_BITS-1:0] even, odd;
  logic [HEAD_DIM*OUT_BITS-1:0] out;
  int source, head, map, place;

  `include "tb_check.svh"

  av_row #(
      .HEAD_DIM(HEAD_DIM), .V_BITS(V_BITS), .V_ZERO(V_ZERO), .ATTENTION_BITS(ATTENTION_BITS), .LAST_CODE_IS_ZERO(LAST_CODE_IS_ZERO),
      .MULTIPLIER_EVEN(MULTIPLIER_EVEN), .MULTIPLIER_ODD(MULTIPLIER_ODD), .OUT_SHIFT(OUT_SHIFT), .OUT_ZERO(OUT_ZERO),
      .OUT_BITS(OUT_BITS), .ACC_BITS(ACC_BITS), .OVERFLOW(OVERFLOW), .ROUNDING(ROUNDING)
  ) dut (.*);

  initial begin
    $readmemh({"taps/", X, ".hex"}, x);
    $readmemh({"taps/", NAME, ".codes.hex"}, codes);
    $readmemh({"taps/", NAME, ".even.hex"}, expected_even);
    $readmemh({"taps/", NAME, ".odd.hex"}, expected_odd);
    $readmemh({"taps/", NAME, ".hex"}, expected);
    if (HAS_EXCLUDED != 0) $readmemh({"constants/", NAME, ".excluded.hex"}, excluded_pair);
    for (int row = 0; row < ROWS; row++)
      for (int j = 0; j < TOKENS; j++) begin
        source = row / (HEADS * TOKENS);
        head = row / TOKENS % HEADS;
        code <= codes[row*TOKENS+j];
        excluded <= HAS_EXCLUDED != 0 ? excluded_pair[(source%WINDOWS*TOKENS+row%TOKENS)*TOKENS+j] : 0;
        for (int d = 0; d < HEAD_DIM; d++) v[d*V_BITS+:V_BITS] <= x[(source*TOKENS+j)*COLUMNS+(2*SCORED+head)*HEAD_DIM+d];
        in_last <= j == TOKENS - 1;
        send();
      end
    finish_after(ROWS);
  end

  always @(posedge clk)
    if (out_valid && out_ready) begin
      map = checked / (HEADS * TOKENS);
      for (int d = 0; d < HEAD_DIM; d++) begin
        place = ((map * TOKENS + checked % TOKENS) * HEADS + checked / TOKENS % HEADS) * HEAD_DIM + d;
        one_even = even[d*ACC_BITS+:ACC_BITS];
        one_odd = odd[d*ACC_BITS+:ACC_BITS];
        one_out = out[d*OUT_BITS+:OUT_BITS];
        `CHECK("even", one_even, expected_even[checked*HEAD_DIM+d])
        `CHECK("odd", one_odd, expected_odd[checked*HEAD_DIM+d])
        `CHECK("out", one_out, expected[place])
      end
      checked <= checked + 1;
    end
endmodule
