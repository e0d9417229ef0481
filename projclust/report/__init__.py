"""Plots and tables from results."""
