"""The codepacks that watch the kernel itself, on guests whose kernels are tampered with from outside."""
