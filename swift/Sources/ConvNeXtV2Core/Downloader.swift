import Foundation

/// What brings a checkpoint from where it is published.
///
/// The one requirement is that of mlx-swift-lm's protocol of this name, so that a type which has it conforms to both.
/// `MLXConvNeXtV2Hub` has one for the Hugging Face Hub.
public protocol Downloader: Sendable {
    /// Download a snapshot of a repository, or find it in the cache.
    ///
    /// - Parameters:
    ///   - id: of the repository, such as "facebook/convnextv2-tiny-1k-224".
    ///   - revision: a branch, tag or commit; nil means the main one.
    ///   - patterns: which files, such as "*.safetensors".
    ///   - useLatest: ask for changes where the cache has a version already.
    /// - Returns: a folder with the files.
    func download(
        id: String, revision: String?, matching patterns: [String], useLatest: Bool,
        progressHandler: @Sendable @escaping (Progress) -> Void
    ) async throws -> URL
}
