"""Laws that are known exactly: linear chains, Ornstein–Uhlenbeck processes, second moments, passage times."""
