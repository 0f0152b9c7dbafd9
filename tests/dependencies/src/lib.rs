//! Holds no code: its manifest keeps the libraries that coming services will use
//! (discovery, CDN, media relay, socket backend) resolved in the workspace's lock file.
#![forbid(unsafe_code)]
