//! What tests, drills and benchmarks are made of. Behind the feature `testing`, never part of a release.
