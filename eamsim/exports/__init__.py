"""Programs in the form of others, each a reading of docs/spec/datapath.md of its own."""
