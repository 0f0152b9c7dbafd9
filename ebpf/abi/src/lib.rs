//! Map layouts that the XDP program and user space share.
