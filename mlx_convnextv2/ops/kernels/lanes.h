// The size of a threadgroup.

CONSTANT uint LANES = 32;           // of a simdgroup, or warp
CONSTANT uint MOST_SIMDGROUPS = 8;  // a threadgroup has at most 256 threads
