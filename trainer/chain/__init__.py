"""Several rounds of training one after the other, and what each of them forgets."""
