//! The names of modules and their parameters: where a visitor is, and how a path is called.

/// The path of the module that a visitor is in, without the variants of enums; the parameters of a GradMem's memory and its WRITE
/// head are named as its own, as the reference has them.
#[derive(Debug, Default)]
pub(crate) struct ModulePath {
    names: Vec<String>,
    /// The type of the module whose field was entered last.
    container: String,
}

impl ModulePath {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        if has_a_name(name, container) {
            self.names.push(name.into());
        }
        self.container = container.into();
    }

    pub(crate) fn exit(&mut self, name: &str, container: &str) {
        if has_a_name(name, container) {
            self.names.pop();
        }
    }

    /// The names, joined by dots.
    pub(crate) fn name(&self) -> String {
        match self.names.as_slice() {
            [objective, rest @ ..]
                if objective == "objective" && rest.first().is_some_and(|x| x == "write_head") =>
            {
                rest.join(".")
            }
            names => names.join("."),
        }
    }

    /// Whether a parameter there is a token embedding.
    pub(crate) fn is_embedding(&self) -> bool {
        self.container == "Struct:Embedding"
    }

    /// Whether a weight there is stored as `[d_input, d_output]`.
    pub(crate) fn is_transposed(&self) -> bool {
        // Burn's `Linear` too, unless it was made with another layout than the usual one.
        ["Struct:Conv1D", "Struct:Linear"].contains(&self.container.as_str())
    }
}

/// In an implementation of a visitor or a mapper with a field `path`: it follows the modules.
macro_rules! follows_path {
    () => {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, name: &str, container: &str) {
            self.path.exit(name, container);
        }
    };
}
pub(crate) use follows_path;

/// Whether a module's path is this name or ends with it: `self_attn.q_proj` is called `q_proj` too.
pub(crate) fn is_called(path: &str, name: &str) -> bool {
    let rest = path.strip_suffix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn has_a_name(field: &str, container: &str) -> bool {
    !container.starts_with("Enum:") && (field, container) != ("memory", "Struct:GradMem")
}
