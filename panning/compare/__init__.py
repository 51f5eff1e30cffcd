"""Methods beside each other under one protocol: grids, tables, statistics, reports."""
