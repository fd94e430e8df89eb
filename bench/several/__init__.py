"""What bench/cluster needs: hosts, PostgreSQL with standbys, servers, clients that record, and their checker."""
