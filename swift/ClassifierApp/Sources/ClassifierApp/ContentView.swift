import MLXConvNeXtV2
import SwiftUI
import UniformTypeIdentifiers

struct ContentView: View {
    @State private var model = ClassifierModel()
    @State private var camera: Camera?
    @State private var isTargeted = false
    @State private var isChoosingImage = false
    @State private var isChoosingFolder = false

    var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            controls
            picture
                .frame(maxWidth: .infinity, maxHeight: .infinity)
                .background(.quaternary.opacity(isTargeted ? 1 : 0.4), in: RoundedRectangle(cornerRadius: 12))
                .dropDestination(for: URL.self) { files, _ in
                    files.first.map(open) != nil
                } isTargeted: {
                    isTargeted = $0
                }
            answer.frame(maxWidth: .infinity, minHeight: 150, alignment: .topLeading)
        }
        .padding()
    }

    private var controls: some View {
        HStack {
            ModelPicker(source: model.source, choose: model.choose) { isChoosingFolder = true }
                .fileImporter(isPresented: $isChoosingFolder, allowedContentTypes: [.folder]) { result in
                    if case .success(let folder) = result { model.choose(folder.path) }
                }
            Spacer()
            Toggle("Heat map", isOn: $model.showsHeatMap)
            Button("Choose ...") { isChoosingImage = true }
                .fileImporter(isPresented: $isChoosingImage, allowedContentTypes: [.image]) { result in
                    if case .success(let file) = result { open(file) }
                }
            Button(camera == nil ? "Camera" : "Stop", action: toggleCamera)
        }
    }

    @ViewBuilder private var picture: some View {
        if let image = model.picture?.drawn {
            Image(decorative: image, scale: 1).resizable().scaledToFit()
                .overlay {
                    if let map = model.heatMap { HeatMapOverlay(map: map) }
                }
                .padding(8)
                .accessibilityLabel(model.predictions.first?.label ?? "The image")
        } else {
            Label("Drop an image here", systemImage: "photo.on.rectangle").foregroundStyle(.secondary)
        }
    }

    @ViewBuilder private var answer: some View {
        switch model.phase {
        case .loading(let part?): ProgressView("Downloading \(model.source)", value: part)
        case .loading(nil): ProgressView("Loading \(model.source)").frame(maxWidth: .infinity)
        case .failed(let sentence): Text(sentence).foregroundStyle(.red).textSelection(.enabled)
        case .working where model.predictions.isEmpty: ProgressView().frame(maxWidth: .infinity)
        case .idle, .working: PredictionBars(predictions: model.predictions)
        }
    }

    private func open(_ file: URL) {
        stopCamera()
        model.classify(.url(file))
    }

    private func toggleCamera() {
        if camera != nil { return stopCamera() }
        let camera = Camera()
        self.camera = camera
        model.watch(camera.frames)
        camera.start()
    }

    private func stopCamera() {
        camera?.stop()
        camera = nil
    }
}

/// A heat map over the part of the image that the model saw.
struct HeatMapOverlay: View {
    let map: HeatMap

    var body: some View {
        GeometryReader { frame in
            if let image = map.overlay {
                Image(decorative: image, scale: 1).resizable().interpolation(.high).opacity(0.6)
                    .frame(
                        width: frame.size.width * map.region.width, height: frame.size.height * map.region.height
                    )
                    .offset(x: frame.size.width * map.region.x, y: frame.size.height * map.region.y)
            }
        }
    }
}

/// A line for each label: its name, a bar, and the probability.
struct PredictionBars: View {
    let predictions: [Classification]

    var body: some View {
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

/// The published checkpoints, with the size of their download, and a folder of one's own.
struct ModelPicker: View {
    let source: String
    let choose: (String) -> Void
    let chooseFolder: () -> Void

    var body: some View {
        Menu(title) {
            ForEach(ConvNeXtV2Registry.all) { checkpoint in
                Button("\(name(checkpoint)) (\(checkpoint.megabytes) MB)") { choose(checkpoint.id) }
            }
            Divider()
            Button("A folder ...", action: chooseFolder)
        }
        .fixedSize()
    }

    private var title: String {
        ConvNeXtV2Registry.checkpoint(id: source).map(name) ?? URL(fileURLWithPath: source).lastPathComponent
    }

    private func name(_ checkpoint: ConvNeXtV2Checkpoint) -> String {
        "\(checkpoint.size.rawValue), \(checkpoint.imageSize) pixels\(checkpoint.isPretrainedOn22k ? ", 22k" : "")"
    }
}
