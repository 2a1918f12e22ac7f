// The Gelu epilogue of a Linear: index = clip(round_shift(acc * multiplier, shift) + INDEX_ZERO), out = table[index].
// Latency: one clock; one sum a clock.
module gelu_table
  import eam_pkg::*;
#(
    parameter int ACC_BITS = 32,
    parameter int MULTIPLIER_BITS = 16,
    parameter int INDEX_BITS = 8,
    parameter int INDEX_ZERO = 0,
    parameter int OUT_BITS = 4,
    parameter int ROUNDING = HALF_UP,
    parameter TABLE = "table.hex"
) (
    input logic clk,
    input logic rst,
    input logic in_valid,
    output logic in_ready,
    input logic signed [ACC_BITS-1:0] acc,
    input logic [MULTIPLIER_BITS-1:0] multiplier,
    input logic [5:0] shift,
    output logic out_valid,
    input logic out_ready,
    output logic [INDEX_BITS-1:0] index,
    output logic [OUT_BITS-1:0] out
);
  logic [OUT_BITS-1:0] rom[0:(1<<INDEX_BITS)-1];
  logic [INDEX_BITS-1:0] where;
  int64 scaled;

  initial $readmemh(TABLE, rom);

  assign in_ready = !out_valid || out_ready;

  always_comb begin
    scaled = int64'(acc) * int64'({1'b0, multiplier});
    where = INDEX_BITS'(clip(round_shift(scaled, shift, ROUNDING) + 64'(INDEX_ZERO), 0, (64'sd1 <<< INDEX_BITS) - 64'sd1));
  end

  always_ff @(posedge clk)
    if (rst) out_valid <= 0;
    else begin
      if (out_ready) out_valid <= 0;
      if (in_valid && in_ready) begin
        index <= where;
        out <= rom[where];
        out_valid <= 1;
      end
    end
endmodule
