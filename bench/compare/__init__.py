"""Shared by the scripts in bench/: starting servers, measuring, tables and charts."""
