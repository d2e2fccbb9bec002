//! The program as administrators run it, against a cloud and a runtime in this process and a system below a folder.

mod cloud;
mod join;
mod machine;
mod reset;
mod token;
