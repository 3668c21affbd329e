"""The control plane: QMP sessions with QEMU, typed commands and typed events."""
