"""Resources of models and subnets: multiply-adds, parameters and memory counted, latency measured."""
