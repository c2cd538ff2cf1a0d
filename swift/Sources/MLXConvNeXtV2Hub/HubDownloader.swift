import ConvNeXtV2Core
import Foundation
import HuggingFace

/// Downloads from the Hugging Face Hub, into the cache that Python's client uses too.
///
/// The client reads HF_TOKEN, HF_ENDPOINT and HF_HOME. In a sandboxed app give it a cache in the app's container.
public struct HubDownloader: Downloader {
    private let client: HubClient

    public init(client: HubClient = .default) {
        self.client = client
    }

    /// - Throws: ``ConvNeXtV2Error/invalid(_:)`` for what is no id, or what the client throws.
    public func download(
        id: String, revision: String?, matching patterns: [String], useLatest: Bool,
        progressHandler: @Sendable @escaping (Progress) -> Void
    ) async throws -> URL {
        let parts = id.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 2, parts.allSatisfy({ !$0.isEmpty && $0 != "." && $0 != ".." }) else {
            throw ConvNeXtV2Error.invalid("\(printable(id)) is not a Hub id such as owner/name")
        }
        return try await client.downloadSnapshot(
            of: Repo.ID(namespace: parts[0], name: parts[1]), revision: revision ?? "main", matching: patterns,
            progressHandler: { progressHandler($0) })
    }
}
