"""What is known of Windows guests: which kernel runs, and what Volatility's plugins say of it."""
