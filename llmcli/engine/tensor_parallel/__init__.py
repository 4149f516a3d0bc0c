"""One model on several processes: each rank computes some heads and features, and the outputs are summed."""
