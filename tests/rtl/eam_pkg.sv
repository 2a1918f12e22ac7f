// The integer primitives of docs/spec/datapath.md, section 1, on 64-bit two's complement.
package eam_pkg;
  typedef logic signed [63:0] int64;

  localparam int HALF_UP = 0, HALF_EVEN = 1, HALF_AWAY = 2, FLOOR = 3;
  localparam int ERROR = 0, WRAP = 1, SATURATE = 2;

  // x / 2^shift, rounded to an integer.
  function automatic int64 round_shift(int64 x, logic [5:0] shift, int rounding);
    int64 half, quotient, rest;
    half = 64'sd1 <<< shift;
    half = half >>> 1;
    quotient = x >>> shift;
    rest = x - (quotient <<< shift);
    case (rounding)
      HALF_UP: begin
        round_shift = x + half;
        round_shift = round_shift >>> shift;
      end
      HALF_EVEN: begin
        round_shift = quotient;
        if (shift != 0 && (rest > half || (rest == half && (quotient & 64'sd1) != 0))) round_shift = quotient + 64'sd1;
      end
      HALF_AWAY: begin
        round_shift = half + (x < 0 ? -x : x);
        round_shift = round_shift >>> shift;
        if (x < 0) round_shift = -round_shift;
      end
      FLOOR: round_shift = quotient;
      default: round_shift = 'x;
    endcase
  endfunction

  function automatic int64 clip(int64 x, int64 low, int64 high);
    clip = x < low ? low : x > high ? high : x;
  endfunction

  // A finished sum in an accumulator of `bits`. ERROR: the program is proved never to leave it.
  function automatic int64 narrow(int64 total, int bits, int overflow);
    int64 high;
    high = (64'sd1 <<< (bits - 1)) - 64'sd1;
    case (overflow)
      ERROR: narrow = total;
      WRAP: begin
        narrow = total <<< (64 - bits);
        narrow = narrow >>> (64 - bits);
      end
      SATURATE: narrow = clip(total, -high - 64'sd1, high);
      default: narrow = 'x;
    endcase
  endfunction

  // Position of the leading one, counted from 1; 0 for 0.
  function automatic int bit_length(logic [63:0] x);
    bit_length = 0;
    for (int i = 0; i < 64; i++) if (x[i]) bit_length = i + 1;
  endfunction
endpackage
