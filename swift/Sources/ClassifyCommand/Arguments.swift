import ConvNeXtV2Core
import Foundation

/// What the command line asks for.
package struct Arguments: Equatable {
    package enum Format: String { case table, json }

    package private(set) var images: [String] = []
    package private(set) var model = ConvNeXtV2Registry.standard.id
    package private(set) var revision: String?
    package private(set) var top = 5
    package private(set) var dtype: String?
    package private(set) var format = Format.table

    package static let usage =
        "usage: mlx-convnextv2 IMAGE ... [--model M] [--revision R] [--top-k K] [--dtype T] [--format F]"
    package static let help = """
        \(usage)

        Name what images show, with a ConvNeXt V2 checkpoint.

          IMAGE         an image file
          --model M     a folder or a Hub id (default: \(ConvNeXtV2Registry.standard.id))
          --revision R  branch, tag or commit of the Hub repository
          --top-k K     labels for each image (default: 5)
          --dtype T     compute in float32, float16 or bfloat16 (default: the checkpoint's)
          --format F    table or json (default: table)

        examples:
          mlx-convnextv2 cat.jpg
          mlx-convnextv2 cat.jpg --model ./my-finetune --format json

        """

    /// - Returns: nil where help is asked for.
    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` that says what is wrong.
    package static func parse(_ words: [String]) throws -> Arguments? {
        var arguments = Arguments()
        var rest = words[...]
        while let word = rest.popFirst() {
            guard word.hasPrefix("--") else {
                arguments.images.append(word)
                continue
            }
            if word == "--help" { return nil }
            let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
            let known = ["--model", "--revision", "--top-k", "--dtype", "--format"]
            guard known.contains(parts[0]) else {
                throw ConvNeXtV2Error.invalid("there is no option \(printable(word))")
            }
            guard let value = parts.count == 2 ? parts[1] : rest.popFirst() else {
                throw ConvNeXtV2Error.invalid("\(word) needs a value")
            }
            try arguments.set(parts[0], value)
        }
        guard !arguments.images.isEmpty else { throw ConvNeXtV2Error.invalid("give at least one IMAGE") }
        return arguments
    }

    private mutating func set(_ option: String, _ value: String) throws {
        switch option {
        case "--model": model = value
        case "--revision": revision = value
        case "--top-k":
            guard let number = Int(value), number >= 1 else {
                throw ConvNeXtV2Error.invalid("--top-k must be a whole number of at least 1, not \(printable(value))")
            }
            top = number
        case "--dtype":
            guard ["float32", "float16", "bfloat16"].contains(value) else {
                throw ConvNeXtV2Error.invalid("--dtype must be float32, float16 or bfloat16, not \(printable(value))")
            }
            dtype = value
        default:
            guard let known = Format(rawValue: value) else {
                throw ConvNeXtV2Error.invalid("--format must be table or json, not \(printable(value))")
            }
            format = known
        }
    }
}
