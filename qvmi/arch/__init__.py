"""CPU facts: registers and paging geometries."""
