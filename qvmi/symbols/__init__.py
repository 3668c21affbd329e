"""Names and layouts of a kernel: kallsyms, BTF, ISF files and the profiles kept of them."""
