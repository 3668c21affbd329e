"""Where the kernel's code can be led elsewhere, and what may lie in it by right."""
