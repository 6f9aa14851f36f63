"""Generated people: data sets in Penn Action's and NTU's own formats, drawn from a seed. Runs in worker processes; no Ray."""
