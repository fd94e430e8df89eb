//! Module cycles: no module of the workspace depends on itself through other modules.
//!
//! The nodes are the files of a crate's module tree, without `#[cfg(test)]` code. A file depends
//! on the file that defines an item it names: in a `use`, or in a path that begins with `crate`,
//! `self`, `super` or one of its child modules. An item that a module re-exports counts for the
//! file that defines it; where that is not known, for the re-exporting file.
//!
//! `mod` is no dependency of a parent on its child, nor is `pub use` of a child's item that the
//! parent does not use itself. So a child may have an `impl` block of its parent's type, as in
//! `pool/*.rs`, while the parent imports nothing from that child. Method calls are not seen.

mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tokens::{Token, group, ident, is_punct, is_sign, tokens};

#[test]
fn no_module_depends_on_itself_through_others() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut roots, mut faults) = (0, vec![]);
    for entry in std::fs::read_dir(workspace.join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        for root in ["lib.rs", "main.rs"] {
            let root = format!("crates/{name}/src/{root}");
            let read = |path: &str| std::fs::read_to_string(workspace.join(path)).ok();
            if read(&root).is_none() {
                continue;
            }
            roots += 1;
            let graph = Graph::new(&root, &read);
            let cycles = graph.cycles();
            if !cycles.is_empty() {
                faults.push(format!("{root}:{}", graph.report(&cycles)));
            }
        }
    }
    assert!(roots >= 5, "only {roots} crate roots found");
    assert!(faults.is_empty(), "modules that depend on themselves:\n{}", faults.join("\n"));
}

/// A module: a file, or an inline module of a file.
#[derive(Debug)]
struct Module {
    file: String,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    imports: Vec<Import>,
    /// Paths in code that are not in a `use`.
    paths: Vec<Vec<String>>,
    /// The identifiers that occur outside of `use`.
    idents: BTreeSet<String>,
    /// The names that follow a keyword such as `struct` or `fn`.
    defined: BTreeSet<String>,
}

/// One name that a `use` imports.
#[derive(Debug)]
struct Import {
    /// The local name; `*` for all names.
    name: String,
    path: Vec<String>,
    is_reexport: bool,
}

/// Where an item is defined.
#[derive(Debug)]
enum Definition {
    In(usize),
    OtherCrate,
}

/// The modules of one crate. The first one is the root.
#[derive(Debug)]
struct Graph {
    modules: Vec<Module>,
}

impl Graph {
    /// Reads a crate from its root file; `read` returns the text of a file.
    fn new(root: &str, read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut graph = Self { modules: vec![] };
        let dir = Path::new(root).parent().unwrap();
        graph.add_file(None, root, dir, read);
        graph
    }

    /// Adds the module of a file; `dir` contains the files of its children.
    fn add_file(
        &mut self,
        parent: Option<usize>,
        file: &str,
        dir: &Path,
        read: &dyn Fn(&str) -> Option<String>,
    ) -> usize {
        let text = read(file).unwrap_or_else(|| panic!("{file} is declared, but missing"));
        let module = self.add_module(parent, file);
        for (name, inner) in self.collect(module, &tokens(&text)) {
            self.add_child(module, &name, inner, dir, read);
        }
        module
    }

    fn add_module(&mut self, parent: Option<usize>, file: &str) -> usize {
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            children: BTreeMap::new(),
            imports: vec![],
            paths: vec![],
            idents: BTreeSet::new(),
            defined: BTreeSet::new(),
        });
        self.modules.len() - 1
    }

    /// Adds a child module: `inner` has its tokens if it is inline.
    fn add_child(
        &mut self,
        parent: usize,
        name: &str,
        inner: Option<Vec<Token>>,
        dir: &Path,
        read: &dyn Fn(&str) -> Option<String>,
    ) {
        let below = dir.join(name);
        let child = if let Some(tokens) = inner {
            let file = self.modules[parent].file.clone();
            let child = self.add_module(Some(parent), &file);
            for (name, inner) in self.collect(child, &tokens) {
                self.add_child(child, &name, inner, &below, read);
            }
            child
        } else {
            let beside = PathBuf::from(format!("{}.rs", below.display()));
            self.add_file(Some(parent), beside.to_str().unwrap(), &below, read)
        };
        self.modules[parent].children.insert(name.to_owned(), child);
    }

    /// Collects what the code of a module names, and returns its child modules.
    fn collect(&mut self, module: usize, tokens: &[Token]) -> Vec<(String, Option<Vec<Token>>)> {
        let mut children = vec![];
        let mut index = 0;
        while index < tokens.len() {
            let (rest, found) = (&tokens[index..], &mut self.modules[module]);
            if is_test_attribute(rest) {
                index += item_len(rest);
                continue;
            }
            match ident(rest, 0) {
                Some("mod") if ident(rest, 1).is_some() => {
                    let inner = group(rest, 2, '{').map(<[_]>::to_vec);
                    children.push((ident(rest, 1).unwrap().to_owned(), inner));
                    index += 3;
                }
                Some("use") if !is_punct(rest, 1, '<') => {
                    let len = rest.iter().position(|token| is_sign(token, ';')).unwrap();
                    let before = &tokens[..index];
                    let is_reexport = match before {
                        [.., Token::Ident(word)]
                        | [.., Token::Ident(word), Token::Group('(', _)] => word == "pub",
                        _ => false,
                    };
                    collect_use(&rest[1..len], &[], is_reexport, &mut found.imports);
                    index += len + 1;
                }
                Some(first) => {
                    let keywords = ["struct", "enum", "fn", "trait", "type", "const", "static"];
                    if keywords.contains(&first) {
                        found.defined.extend(ident(rest, 1).map(str::to_owned));
                    }
                    found.idents.insert(first.to_owned());
                    let (path, len) = path(rest);
                    if path.len() > 1 {
                        found.paths.push(path);
                    }
                    index += len;
                }
                None if is_path_separator(rest, 0) => {
                    // What follows continues a path that does not begin with a name.
                    index += if ident(rest, 2).is_some() { 3 } else { 2 };
                }
                None => {
                    if let Token::Group(_, inner) = &rest[0] {
                        children.extend(self.collect(module, inner));
                    }
                    index += 1;
                }
            }
        }
        children
    }

    /// Finds the definition of the item at `path`, as `from` names it. `seen` has the imports that
    /// were followed.
    fn resolve(
        &self,
        from: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Definition {
        let mut module = None;
        for (index, name) in path.iter().enumerate() {
            let current = module.unwrap_or(from);
            let next = match name.as_str() {
                "crate" => Some(0),
                "self" => Some(current),
                "super" => self.modules[current].parent,
                name => self.modules[current].children.get(name).copied(),
            };
            if next.is_none() {
                let imported = self.resolve_import(current, &path[index..], seen);
                let here = module.map_or(Definition::OtherCrate, Definition::In);
                return imported.unwrap_or(here);
            }
            module = next;
        }
        module.map_or(Definition::OtherCrate, Definition::In)
    }

    /// Resolves a path whose first name `module` imports; `None` if it does not import that name.
    fn resolve_import(
        &self,
        module: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Definition> {
        let (name, rest) = path.split_first()?;
        if !seen.insert((module, name.clone())) {
            return None;
        }
        let imports = &self.modules[module].imports;
        if let Some(import) = imports.iter().find(|import| import.name == *name) {
            let path: Vec<_> = import.path.iter().chain(rest).cloned().collect();
            return Some(self.resolve(module, &path, seen));
        }
        let globs = imports.iter().filter(|import| import.name == "*");
        let mut globs = globs.map(|import| self.resolve(module, &import.path, seen));
        globs.find(|glob| match glob {
            Definition::In(module) => self.modules[*module].defined.contains(name),
            Definition::OtherCrate => false,
        })
    }

    /// Returns whether `module` is below `ancestor`.
    fn is_below(&self, module: usize, ancestor: usize) -> bool {
        let mut parents = std::iter::successors(self.modules[module].parent, |parent| {
            self.modules[*parent].parent
        });
        parents.any(|parent| parent == ancestor)
    }

    /// Returns for each file the files that it depends on, each with one path that it names.
    fn edges(&self) -> BTreeMap<&str, BTreeMap<&str, String>> {
        let mut edges: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (index, module) in self.modules.iter().enumerate() {
            let imported = module.imports.iter().map(|import| {
                let is_unused = import.is_reexport && !module.idents.contains(&import.name);
                (&import.path, is_unused)
            });
            let named = module.paths.iter().map(|path| (path, false));
            for (path, is_unused_reexport) in imported.chain(named) {
                let starts_in_crate = ["crate", "self", "super"].contains(&path[0].as_str())
                    || module.children.contains_key(&path[0]);
                let Definition::In(target) = self.resolve(index, path, &mut BTreeSet::new()) else {
                    continue;
                };
                let is_declared = is_unused_reexport && self.is_below(target, index);
                let to = &*self.modules[target].file;
                if starts_in_crate && !is_declared && to != module.file {
                    edges.entry(&module.file).or_default().entry(to).or_insert(path.join("::"));
                }
            }
        }
        edges
    }

    /// Returns the sets of files that depend on each other: the strongly connected components of
    /// more than one file.
    fn cycles(&self) -> Vec<BTreeSet<&str>> {
        let edges = self.edges();
        let reached_from = |start| {
            let (mut reached, mut pending) = (BTreeSet::<&str>::new(), vec![start]);
            while let Some(file) = pending.pop() {
                let next = edges.get(file).into_iter().flat_map(BTreeMap::keys);
                pending.extend(next.copied().filter(|file| reached.insert(*file)));
            }
            reached
        };
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            edges.keys().map(|file| (*file, reached_from(file))).collect();
        let mut cycles: Vec<BTreeSet<&str>> = vec![];
        for (file, others) in &reached {
            let is_new = cycles.iter().all(|cycle| !cycle.contains(file));
            if is_new && others.contains(file) {
                let depends = |other: &&&str| reached.get(*other).is_some_and(|r| r.contains(file));
                cycles.push(others.iter().filter(depends).copied().collect());
            }
        }
        cycles
    }

    /// Describes cycles: the files of each, and what each file names of the others.
    fn report(&self, cycles: &[BTreeSet<&str>]) -> String {
        let edges = self.edges();
        let mut text = String::new();
        for cycle in cycles {
            write!(text, "\na cycle of {} files:", cycle.len()).unwrap();
            for file in cycle {
                write!(text, "\n  {file}").unwrap();
                for (to, path) in edges[file].iter().filter(|(to, _)| cycle.contains(*to)) {
                    write!(text, "\n    uses {to}: {path}").unwrap();
                }
            }
        }
        text
    }
}

fn is_path_separator(tokens: &[Token], index: usize) -> bool {
    is_punct(tokens, index, ':') && is_punct(tokens, index + 1, ':')
}

/// Returns the path that the tokens begin with, and its number of tokens.
fn path(tokens: &[Token]) -> (Vec<String>, usize) {
    let mut path: Vec<_> = ident(tokens, 0).map(str::to_owned).into_iter().collect();
    let mut len = path.len();
    while is_path_separator(tokens, len)
        && let Some(name) = ident(tokens, len + 2)
    {
        path.push(name.to_owned());
        len += 3;
    }
    (path, len)
}

/// Collects the names that a tree of a `use` imports, below the path `prefix`.
fn collect_use(tokens: &[Token], prefix: &[String], is_reexport: bool, imports: &mut Vec<Import>) {
    for tree in tokens.split(|token| is_sign(token, ',')).filter(|tree| !tree.is_empty()) {
        let (names, mut len) = path(tree);
        let mut path = [prefix, &names[..]].concat();
        len += if is_path_separator(tree, len) { 2 } else { 0 };
        if let Some(inner) = group(tree, len, '{') {
            collect_use(inner, &path, is_reexport, imports);
            continue;
        }
        if path.len() > 1 {
            path.pop_if(|last| last == "self");
        }
        let is_glob = is_punct(tree, len, '*');
        let alias = (ident(tree, len) == Some("as")).then(|| ident(tree, len + 1));
        let name = alias.flatten().map(str::to_owned).or_else(|| path.last().cloned());
        let name = if is_glob { "*".to_owned() } else { name.expect("a name") };
        imports.push(Import { name, path, is_reexport });
    }
}

/// Returns whether the tokens begin with `#[cfg(test)]`, also together with other conditions.
fn is_test_attribute(tokens: &[Token]) -> bool {
    let attribute = group(tokens, 1, '[').filter(|_| is_punct(tokens, 0, '#'));
    let condition = attribute.filter(|attribute| ident(attribute, 0) == Some("cfg"));
    let Some(condition) = condition.and_then(|attribute| group(attribute, 1, '(')) else {
        return false;
    };
    let is_test = |tokens: &[Token]| (0..tokens.len()).any(|i| ident(tokens, i) == Some("test"));
    is_test(condition)
        || (ident(condition, 0) == Some("all") && group(condition, 1, '(').is_some_and(is_test))
}

/// Returns the number of tokens of an item with its attributes.
fn item_len(tokens: &[Token]) -> usize {
    let mut len = 0;
    while is_punct(tokens, len, '#') {
        len += 2;
    }
    let is_use = (len..len + 3).any(|index| ident(tokens, index) == Some("use"));
    let is_end = |token: &Token| match token {
        Token::Sign(sign) => *sign == ';',
        Token::Group(opening, _) => *opening == '{' && !is_use,
        Token::Ident(_) | Token::Other => false,
    };
    let end = tokens[len..].iter().position(is_end);
    end.map_or(tokens.len(), |end| len + end + 1)
}

/// Returns the cycles of a crate with these files; the first is the root.
fn cycles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let read = |path: &str| {
        files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    };
    let graph = Graph::new(files[0].0, &read);
    let owned = |cycle: BTreeSet<&str>| cycle.into_iter().map(str::to_owned).collect();
    graph.cycles().into_iter().map(owned).collect()
}

#[test]
fn a_planted_cycle_is_found() {
    let root = ("lib.rs", "mod a; mod b; mod c; pub use a::A;");
    for (a, b) in [
        ("use crate::b::B; pub struct A;", "use crate::a::A; struct B;"),
        ("use super::{b::{self}}; pub struct A;", "pub(super) fn b(_: super::a::A) {}"),
        ("fn a() { crate::b::b() }", "fn b() { if true { vec![crate::a::A]; } }"),
        ("use crate::b::*; pub struct A;", "use crate::A;"),
        ("use crate::b as other; pub struct A;", "mod inner { fn f() { super::super::a::f() } }"),
    ] {
        let found = cycles_of(&[root, ("a.rs", a), ("b.rs", b), ("c.rs", "use crate::a::A;")]);
        assert_eq!(found, [["a.rs", "b.rs"]], "{a} / {b}");
    }
}

#[test]
fn a_longer_cycle_and_one_through_the_root_are_found() {
    let root = ("lib.rs", "mod a; mod b; mod c; pub fn f() { a::g() }");
    let found = cycles_of(&[
        root,
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "use crate::c::C;"),
        ("c.rs", "use crate::a::A;"),
    ]);
    assert_eq!(found, [["a.rs", "b.rs", "c.rs"]]);
    let found =
        cycles_of(&[root, ("a.rs", "pub fn g() {}"), ("b.rs", ""), ("c.rs", "use crate::f;")]);
    assert!(found.is_empty(), "{found:?}");
    let found = cycles_of(&[
        root,
        ("a.rs", "use crate::f; fn g() {}"),
        ("b.rs", "use crate::a::A;"),
        ("c.rs", ""),
    ]);
    assert_eq!(found, [["a.rs", "lib.rs"]]);
}

#[test]
fn what_is_no_dependency_makes_no_cycle() {
    let root = ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;");
    for (a, b) in [
        ("use crate::B; pub struct A;", "pub struct B; #[cfg(test)] mod tests;"),
        ("use crate::B; pub struct A;", "pub struct B; #[cfg(test)] mod t { use crate::A; }"),
        ("use crate::B;", "#[cfg(all(test, unix))] use crate::{A, a::f}; struct B;"),
        ("use crate::B;", "/// [`A`](crate::A)\n// crate::A\nstruct B(&'static str);"),
        ("use crate::B;", r#"const S: &str = "use crate::A;"; const C: char = '"';"#),
        ("use crate::B;", "use std::a::A; fn f() { x.a::<u8>(); <u8 as T>::a::f() }"),
    ] {
        let found = cycles_of(&[root, ("a.rs", a), ("b.rs", b)]);
        assert!(found.is_empty(), "{a} / {b}: {found:?}");
    }
}

#[test]
fn a_child_with_an_impl_of_its_parent_is_a_cycle_only_if_the_parent_uses_it() {
    let child = ("a/b.rs", "use super::A; impl A {} pub struct B;");
    for (parent, expected) in [
        ("mod b; pub struct A; fn f(a: A) { a.b() }", vec![]),
        ("mod b; pub(crate) use b::B; pub struct A;", vec![]),
        ("mod b; pub use b::B; pub struct A(B);", vec![["a.rs", "a/b.rs"]]),
        ("mod b; use b::B; pub struct A(B);", vec![["a.rs", "a/b.rs"]]),
        ("mod b; pub struct A(b::B);", vec![["a.rs", "a/b.rs"]]),
    ] {
        let found = cycles_of(&[("lib.rs", "mod a;"), ("a.rs", parent), child]);
        assert_eq!(found, expected, "{parent}");
    }
}
