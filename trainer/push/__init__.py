"""From a run to a served alias: preflight, upload, parity, gate, promotion."""
