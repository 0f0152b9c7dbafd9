//! Makes bounded network namespaces and removes them.
