"""Results to look at: tables for a terminal, figures for a page."""
