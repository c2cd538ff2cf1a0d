import Foundation

/// What can go wrong, each with a sentence that says what to do.
public enum ConvNeXtV2Error: LocalizedError, Equatable, Sendable {
    /// A file or folder is not there.
    case notFound(String)
    /// A file is truncated, corrupt, or of a kind that is not read.
    case unreadable(String)
    /// A value of a configuration, or an argument, makes no sense.
    case invalid(String)
    /// Tensors of a checkpoint are missing, left over, or of another shape or type than the model's.
    case weightsDoNotFit(folder: String, missing: [String], unexpected: [String], misshaped: [String])
    /// An image cannot be decoded, or is too large, too small or too narrow.
    case image(String)
    /// MLX reported an error, or the model gave scores that are not finite.
    case computation(String)

    public var errorDescription: String? {
        switch self {
        case .notFound(let sentence), .unreadable(let sentence), .invalid(let sentence), .image(let sentence),
            .computation(let sentence):
            return sentence
        case .weightsDoNotFit(let folder, let missing, let unexpected, let misshaped):
            let problems = [("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped)]
                .filter { !$0.1.isEmpty }
                .map { "\($0.1.count) \($0.0): \(some($0.1))" }
            return "the weights in \(folder) do not fit its config.json: " + problems.joined(separator: "; ")
        }
    }
}
