"""What bench/run, bench/scale and bench/tail share: servers, measuring, tables, charts."""
