// Passes over hidden (N, P, D), P pixels of D channels, in strips of pixels.
//
// A lane owns VECTOR neighbouring channels, each simdgroup of a threadgroup a part of its strip. AHEAD pixels are loaded
// before any of them is used, so that loads overlap.

CONSTANT int AHEAD = 4;

// Parts of equal length, the last of what is left.
FUNCTION int first_pixel(int pixels, uint part, uint parts) {
  const int length = (pixels + int(parts) - 1) / int(parts);
  return int(part) * length < pixels ? int(part) * length : pixels;
}

// AHEAD pixels from the first, `left` of which are the thread's: the others repeat the last.
template <int VECTOR, typename Hidden>
FUNCTION void load_ahead(
    Hidden hidden, size_t first, int left, int channels, LOCAL float (&values)[AHEAD][VECTOR]) {
  UNROLL for (int i = 0; i < AHEAD; ++i) {
    UNROLL for (int v = 0; v < VECTOR; ++v) {
      values[i][v] = float((hidden + first)[uint((i < left ? i : left - 1) * channels + v)]);
    }
  }
}
