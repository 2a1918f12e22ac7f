// Every row of the attention maps of one operation, frozen and excluded pairs included.
module tb_softmax_row;
  parameter NAME = "block0.attn";
  parameter int IMAGES = 1, WINDOWS = 1, HEADS = 4, TOKENS = 17;
  parameter int SCORE_MULTIPLIER = 40000, SCORE_SHIFT = 16, FRACTION_BITS = 8, EXP2_BITS = 15, LOG2_BITS = 8, ATTENTION_BITS = 4;
  parameter LOG2_SCALE = "0";
  parameter int SCORE_BITS = 32, EXPONENT_BITS = 30, LOG_SUM_BITS = 32, ROUNDING = 0;
  parameter int RENORMALISED = 0, FROZEN_MAPS = 0, FROZEN_BITS = 4, HAS_EXCLUDED = 0;

  localparam int ROWS = IMAGES * WINDOWS * HEADS * TOKENS, MAP = HEADS * TOKENS * TOKENS, LAST_CODE = (1 << ATTENTION_BITS) - 1;

  logic signed [SCORE_BITS-1:0] scores[0:ROWS*TOKENS-1], score;
  logic [EXPONENT_BITS-1:0] expected_exponent[0:ROWS*TOKENS-1];
  logic [LOG_SUM_BITS-1:0] expected_log_sum[0:ROWS-1];
  logic [ATTENTION_BITS-1:0] expected[0:ROWS*TOKENS-1], code, given_code;
  logic mask[0:FROZEN_MAPS*MAP];
  logic [FROZEN_BITS-1:0] frozen[0:FROZEN_MAPS*MAP];
  logic [24:0] masses[0:FROZEN_MAPS*HEADS*TOKENS], row_log2;
  logic excluded[0:WINDOWS*TOKENS*TOKENS-1];
  logic signed [31:0] log2_scale;
  logic computed, given;
  logic [29:0] exponent;
  logic [31:0] log_sum;
  logic is_frozen, is_excluded;
  int window, pair;

  `include "tb_check.svh"

  softmax_row #(
      .TOKENS(TOKENS), .SCORE_BITS(SCORE_BITS), .SCORE_MULTIPLIER(SCORE_MULTIPLIER), .SCORE_SHIFT(SCORE_SHIFT),
      .FRACTION_BITS(FRACTION_BITS), .EXP2_BITS(EXP2_BITS), .LOG2_BITS(LOG2_BITS), .ATTENTION_BITS(ATTENTION_BITS), .ROUNDING(ROUNDING),
      .EXP2({"constants/", NAME, ".exp2.hex"}), .LOG2({"constants/", NAME, ".log2.hex"})
  ) dut (.*);

  initial begin
    if ($sscanf(LOG2_SCALE, "%d", log2_scale) != 1) $fatal(1);
    $readmemh({"taps/", NAME, ".scores.hex"}, scores);
    $readmemh({"taps/", NAME, ".exponents.hex"}, expected_exponent);
    $readmemh({"taps/", NAME, ".log_sum.hex"}, expected_log_sum);
    $readmemh({"taps/", NAME, ".codes.hex"}, expected);
    if (FROZEN_MAPS != 0) begin
      $readmemh({"constants/", NAME, ".frozen.mask.hex"}, mask, 0, FROZEN_MAPS * MAP - 1);
      $readmemh({"constants/", NAME, ".frozen.codes.hex"}, frozen, 0, FROZEN_MAPS * MAP - 1);
      $readmemh({"constants/", NAME, ".frozen.row_log2.hex"}, masses, 0, FROZEN_MAPS * HEADS * TOKENS - 1);
    end
    if (HAS_EXCLUDED != 0) $readmemh({"constants/", NAME, ".excluded.hex"}, excluded);
    for (int row = 0; row < ROWS; row++) begin
      window = row / (HEADS * TOKENS) % WINDOWS;
      for (int j = 0; j < TOKENS; j++) begin
        pair = (FROZEN_MAPS > 1 ? window * MAP : 0) + row % (HEADS * TOKENS) * TOKENS + j;
        is_frozen = FROZEN_MAPS != 0 ? mask[pair] : 0;
        is_excluded = HAS_EXCLUDED != 0 ? excluded[(window*TOKENS+row%TOKENS)*TOKENS+j] : 0;
        score <= scores[row*TOKENS+j];
        computed <= !is_excluded && !(RENORMALISED != 0 && is_frozen);
        given <= is_frozen || is_excluded;
        given_code <= is_excluded ? LAST_CODE : FROZEN_MAPS != 0 ? frozen[pair] << (ATTENTION_BITS - FROZEN_BITS) : 0;
        row_log2 <= RENORMALISED != 0 && FROZEN_MAPS != 0 ? masses[pair/TOKENS] : 0;
        send();
      end
    end
    finish_after(ROWS * TOKENS);
  end

  always @(posedge clk)
    if (out_valid && out_ready) begin
      `CHECK("exponent", exponent, 30'(expected_exponent[checked]))
      `CHECK("log_sum", log_sum, 32'(expected_log_sum[checked/TOKENS]))
      `CHECK("code", code, expected[checked])
      checked <= checked + 1;
    end
endmodule
