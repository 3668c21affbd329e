"""One table of ways to tamper with a guest, and of the codepacks that must tell of each."""
