// One row of attention: scores in, log-sqrt2 codes out. The softmax runs over the pairs that are computed; frozen and excluded ones
// take the codes they are given. Both meanings of freezing: they differ in what is computed, and in row_log2.
// Latency: TOKENS + 2 clocks between the last score and the first code; in and out one pair a clock.
module softmax_row
  import eam_pkg::*;
#(
    parameter int TOKENS = 17,
    parameter int SCORE_BITS = 32,
    parameter int SCORE_MULTIPLIER = 40000,
    parameter int SCORE_SHIFT = 16,
    parameter int FRACTION_BITS = 8,
    parameter int EXP2_BITS = 15,
    parameter int LOG2_BITS = 8,
    parameter int ATTENTION_BITS = 4,
    parameter int ROUNDING = HALF_UP,
    parameter EXP2 = "exp2.hex",
    parameter LOG2 = "log2.hex"
) (
    input logic clk,
    input logic rst,
    input logic signed [31:0] log2_scale,
    input logic in_valid,
    output logic in_ready,
    input logic signed [SCORE_BITS-1:0] score,
    input logic computed,
    input logic given,
    input logic [ATTENTION_BITS-1:0] given_code,
    input logic [24:0] row_log2,
    output logic out_valid,
    input logic out_ready,
    output logic [29:0] exponent,
    output logic [31:0] log_sum,
    output logic [ATTENTION_BITS-1:0] code
);
  localparam logic [1:0] LOAD = 0, EXPONENTS = 1, LOGARITHM = 2, EMIT = 3;

  logic [EXP2_BITS:0] exp2[0:(1<<FRACTION_BITS)-1];
  logic [FRACTION_BITS:0] log2[0:(1<<LOG2_BITS)-1];
  logic signed [SCORE_BITS-1:0] scores[0:TOKENS-1];
  logic [29:0] exponents[0:TOKENS-1];
  logic [ATTENTION_BITS-1:0] codes[0:TOKENS-1];
  logic [TOKENS-1:0] taken, fixed;
  logic [1:0] state;
  logic any;
  int at, lead;
  logic signed [SCORE_BITS-1:0] top;
  logic [24:0] mass;
  logic [31:0] sum, term;
  logic [FRACTION_BITS-1:0] fraction;
  logic [LOG2_BITS-1:0] mantissa;
  int64 below, t, level;

  initial begin
    $readmemh(EXP2, exp2);
    $readmemh(LOG2, log2);
  end

  assign in_ready = state == LOAD;
  assign out_valid = state == EMIT;
  assign exponent = exponents[at];

  always_comb begin
    below = (int64'(top) - int64'(scores[at])) * 64'(SCORE_MULTIPLIER);
    t = taken[at] ? round_shift(below, 6'(SCORE_SHIFT), ROUNDING) : 64'sd0;
    fraction = FRACTION_BITS'(t);
    term = 32'(exp2[fraction]) >> (t >>> FRACTION_BITS);
    lead = bit_length({32'd0, sum}) - 1;
    mantissa = LOG2_BITS'(({32'd0, sum} << LOG2_BITS) >> lead);
    level = (int64'({34'd0, exponents[at]}) + int64'({32'd0, log_sum}) + int64'({39'd0, mass}) + int64'(log2_scale)) <<< 1;
    level = round_shift(level, 6'(FRACTION_BITS), ROUNDING);
    code = fixed[at] ? codes[at] : ATTENTION_BITS'(clip(level, 0, (64'sd1 <<< ATTENTION_BITS) - 64'sd1));
  end

  always_ff @(posedge clk)
    if (rst) begin
      state <= LOAD;
      at <= 0;
      any <= 0;
    end else
      case (state)
        LOAD:
        if (in_valid) begin
          scores[at] <= score;
          taken[at] <= computed;
          fixed[at] <= given;
          codes[at] <= given_code;
          mass <= row_log2;
          if (computed && (!any || score > top)) top <= score;
          any <= any || computed;
          sum <= 0;
          at <= at == TOKENS - 1 ? 0 : at + 1;
          if (at == TOKENS - 1) state <= EXPONENTS;
        end
        EXPONENTS: begin
          exponents[at] <= t[29:0];
          if (taken[at]) sum <= sum + term;
          at <= at == TOKENS - 1 ? 0 : at + 1;
          if (at == TOKENS - 1) state <= LOGARITHM;
        end
        LOGARITHM: begin
          log_sum <= sum == 0 ? 0 : ((lead - EXP2_BITS) <<< FRACTION_BITS) + 32'(log2[mantissa]);
          state <= EMIT;
        end
        EMIT:
        if (out_ready) begin
          at <= at == TOKENS - 1 ? 0 : at + 1;
          if (at == TOKENS - 1) begin
            state <= LOAD;
            any <= 0;
          end
        end
      endcase
endmodule
