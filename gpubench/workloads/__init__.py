"""What is measured: bundled workloads, those of other distributions, a user's own. Listing them needs no torch."""
