"""What a real QEMU said, recorded, and the one fake that says it again."""
