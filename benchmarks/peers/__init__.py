"""Models of other libraries, and ours, as the benchmarks train them side by side."""
