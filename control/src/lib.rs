//! Answers Dapps and operators, and owns who may have a session.
