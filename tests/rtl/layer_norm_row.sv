// One token of a LayerNorm: CHANNELS integers in, then CHANNELS integers out, with exact centring, square root and reciprocal.
// Latency: 32 clocks of square root (a bit each) and bit_length(D) + RECIPROCAL_BITS + 1 of long division; in and out one channel a clock.
module layer_norm_row
  import eam_pkg::*;
#(
    parameter int CHANNELS = 64,
    parameter int X_BITS = 16,
    parameter int RECIPROCAL_BITS = 15,
    parameter int FRACTION_BITS = 12,
    parameter int SHIFT = 20,
    parameter int OUT_BITS = 4,
    parameter int OUT_SIGNED = 0,
    parameter int ROUNDING = HALF_UP,
    parameter GAIN = "gain.hex",
    parameter OFFSET = "offset.hex"
) (
    input logic clk,
    input logic rst,
    input logic [61:0] variance_offset,
    input logic in_valid,
    output logic in_ready,
    input logic signed [X_BITS-1:0] x,
    output logic out_valid,
    input logic out_ready,
    output logic [61:0] variance,
    output logic [31:0] reciprocal,
    output logic signed [31:0] normalised,
    output logic [OUT_BITS-1:0] out
);
  localparam int64 LOW = OUT_SIGNED != 0 ? -(64'sd1 <<< (OUT_BITS - 1)) : 64'sd0;
  localparam int64 HIGH = (64'sd1 <<< (OUT_SIGNED != 0 ? OUT_BITS - 1 : OUT_BITS)) - 64'sd1;
  localparam logic [1:0] LOAD = 0, ROOT = 1, DIVIDE = 2, EMIT = 3;

  logic signed [31:0] gain[0:CHANNELS-1];
  logic signed [63:0] offset[0:CHANNELS-1];
  logic signed [X_BITS-1:0] row[0:CHANNELS-1];
  logic [1:0] state;
  int at, place, exponent;
  int64 total, squares, wide_x, centred, t, scaled;
  logic [63:0] root, trial, rest, grown;

  initial begin
    $readmemh(GAIN, gain);
    $readmemh(OFFSET, offset);
  end

  assign in_ready = state == LOAD;
  assign out_valid = state == EMIT;

  always_comb begin
    wide_x = int64'(x);
    trial = root | (64'd1 << place);
    grown = (rest << 1) | 64'(place == exponent);
    centred = int64'(CHANNELS) * int64'(row[at]) - total;
    scaled = centred * int64'({1'b0, reciprocal});
    t = round_shift(scaled, 6'(exponent - FRACTION_BITS), ROUNDING);
    normalised = 32'(t);
    scaled = t * int64'(gain[at]) + offset[at];
    out = OUT_BITS'(clip(round_shift(scaled, 6'(SHIFT), ROUNDING), LOW, HIGH));
  end

  always_ff @(posedge clk)
    if (rst) begin
      state <= LOAD;
      at <= 0;
      total <= 0;
      squares <= 0;
    end else
      case (state)
        LOAD:
        if (in_valid) begin
          row[at] <= x;
          total <= total + wide_x;
          squares <= squares + wide_x * wide_x;
          at <= at + 1;
          if (at == CHANNELS - 1) begin
            state <= ROOT;
            place <= 31;
            root <= 0;
          end
        end
        ROOT: begin  // floor of the square root, from its highest bit down
          variance <= 62'(int64'(CHANNELS) * squares - total * total + int64'({2'b0, variance_offset}));
          if (place < 31 && trial * trial <= {2'b0, variance}) root <= trial;
          place <= place - 1;
          if (place == 0) begin
            state <= DIVIDE;
            rest <= 0;
            reciprocal <= 0;
            exponent <= bit_length(trial * trial <= {2'b0, variance} ? trial : root) + RECIPROCAL_BITS;
            place <= bit_length(trial * trial <= {2'b0, variance} ? trial : root) + RECIPROCAL_BITS;
          end
        end
        DIVIDE: begin  // floor(2^exponent / root), a bit of the quotient a clock
          rest <= grown >= root ? grown - root : grown;
          reciprocal <= (reciprocal << 1) | 32'(grown >= root);
          place <= place - 1;
          if (place == 0) begin
            state <= EMIT;
            at <= 0;
          end
        end
        EMIT:
        if (out_ready) begin
          at <= at + 1;
          if (at == CHANNELS - 1) begin
            state <= LOAD;
            at <= 0;
            total <= 0;
            squares <= 0;
          end
        end
      endcase
endmodule
