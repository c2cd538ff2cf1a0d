import ConvNeXtV2
import SwiftUI

/// A window to drop an image on: what it shows, with a bar for each probability.
@main
struct ClassifierApp: App {
    var body: some Scene {
        Window("ConvNeXt V2", id: "main") {
            ContentView().frame(minWidth: 420, minHeight: 520)
        }
    }
}

@MainActor
final class Model: ObservableObject {
    enum Phase {
        case empty
        case working
        case done([Prediction])
        case failed(String)
    }

    @Published private(set) var picture: URL?
    @Published private(set) var phase = Phase.empty
    private var classifier: Task<Classifier, Error>?

    func classify(_ url: URL) {
        picture = url
        phase = .working
        let classifier = self.classifier ?? Task.detached { try Self.open() }
        self.classifier = classifier
        Task {
            let result: Phase
            do {
                let opened = try await classifier.value
                result = .done(try await Task.detached { try opened.classify(PixelImage(contentsOf: url)) }.value)
            } catch {
                result = .failed(error.localizedDescription)
            }
            if picture == url { phase = result }  // another image may have been dropped meanwhile
        }
    }

    /// The folder "classifier" among the app's resources, or CLASSIFIER_FOLDER where it runs without a bundle.
    private nonisolated static func open() throws -> Classifier {
        if let metallib = Bundle.main.url(forResource: "mlx", withExtension: "metallib") {
            try Classifier.setMetallib(metallib)
        }
        let named = ProcessInfo.processInfo.environment["CLASSIFIER_FOLDER"].map { URL(fileURLWithPath: $0) }
        let bundled = Bundle.main.resourceURL?.appendingPathComponent("classifier")
        return try Classifier(folder: named ?? bundled ?? URL(fileURLWithPath: "classifier"))
    }
}

struct ContentView: View {
    @StateObject private var model = Model()
    @State private var isTargeted = false

    var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            picture
                .frame(maxWidth: .infinity, maxHeight: .infinity)
                .background(.quaternary.opacity(isTargeted ? 1 : 0.4), in: RoundedRectangle(cornerRadius: 12))
                .onDrop(of: [.fileURL], isTargeted: $isTargeted, perform: drop)
            answer.frame(maxWidth: .infinity, minHeight: 150, alignment: .topLeading)
        }
        .padding()
    }

    @ViewBuilder private var picture: some View {
        if let url = model.picture, let image = NSImage(contentsOf: url) {
            Image(nsImage: image).resizable().scaledToFit().padding(8)
                .accessibilityLabel(url.lastPathComponent)
        } else {
            Label("Drop an image here", systemImage: "photo.on.rectangle").foregroundStyle(.secondary)
        }
    }

    @ViewBuilder private var answer: some View {
        switch model.phase {
        case .empty: EmptyView()
        case .working: ProgressView().frame(maxWidth: .infinity)
        case .failed(let sentence): Text(sentence).foregroundStyle(.red).textSelection(.enabled)
        case .done(let predictions):
            Grid(alignment: .leading, verticalSpacing: 6) {
                ForEach(predictions) { prediction in
                    GridRow {
                        Text(prediction.label).lineLimit(1)
                        ProgressView(value: Double(prediction.score)).frame(minWidth: 120)
                        Text(prediction.score, format: .percent.precision(.fractionLength(1))).monospacedDigit()
                    }
                }
            }
        }
    }

    private func drop(_ providers: [NSItemProvider]) -> Bool {
        guard let provider = providers.first, provider.canLoadObject(ofClass: URL.self) else { return false }
        _ = provider.loadObject(ofClass: URL.self) { url, _ in
            guard let url else { return }
            Task { @MainActor in model.classify(url) }
        }
        return true
    }
}
