"""The bus: messages between codepacks and those who listen, in one process or through a broker."""
